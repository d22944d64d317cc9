"""The benchmarks measure in a process set up as the command line sets up its own."""

from run import set_up_process

set_up_process()
