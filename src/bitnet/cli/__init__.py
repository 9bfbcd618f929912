"""The command line: one verb per file; each parses, calls and prints. Torch is imported only inside a
command.
"""
