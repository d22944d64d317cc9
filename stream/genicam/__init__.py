"""The source of industrial cameras (GigE Vision, USB3 Vision), with a GenTL producer or Aravis."""
