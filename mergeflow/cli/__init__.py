"""The command line: a thin user of `mergeflow.build`. One file a command; what they share is in

- main: the list of commands, and the way in
- failure: every way to end, as a message and an exit code
- options: options that several commands take, and opening a project with them
- report: what happens during a build, on stderr (live: the line that moves, the only module with rich)
- text: tables, counts, JSON
- describe: a plan as plain data, which `plan` prints; forms: its normal forms as text

Whatever costs time to import is imported inside functions: `mergeflow --version` must be quick, and so must a build
that has nothing to do.
"""
