"""The only threads of the program: ``source`` reads cameras, ``queue`` feeds sinks, ``thread`` runs servers."""
