"""`python -m mergeflow`."""

from mergeflow.cli.main import main

if __name__ == "__main__":
    main()
