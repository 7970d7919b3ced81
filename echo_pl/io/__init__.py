"""Files: atomic writing, run folders, memory, clocks, processes of workers."""
