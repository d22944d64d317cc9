"""The only modules that start threads: ``source`` reads cameras, ``queue`` feeds sinks, ``thread`` runs servers."""
