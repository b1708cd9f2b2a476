"""Bytes on disk: reading and writing safetensors, positioned I/O, and the digests and facts of a file's content."""
