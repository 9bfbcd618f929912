"""Large trials of what a run promises: kills, damaged files, full disks, nonsense on the command line, files
from strangers.
"""
