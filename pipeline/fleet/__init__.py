"""Leases of cameras: the protocol between a director and its workers, without network, threads or clocks."""
