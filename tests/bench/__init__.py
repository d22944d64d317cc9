"""The benchmarks measure in a process set up as the command line sets up its own."""

from run import settle

settle()
