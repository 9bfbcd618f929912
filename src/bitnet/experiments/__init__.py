"""What we train, one file each. A file here that defines `experiment` is an experiment; there is no
registry.
"""
