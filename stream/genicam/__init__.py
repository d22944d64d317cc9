"""Industrial cameras: GigE Vision and USB3 Vision, by a GenTL producer or by Aravis."""
