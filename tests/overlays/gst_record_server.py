"""A media server for tests: takes a stream by RTSP's RECORD and writes its images. Run by the system's Python.

    /usr/bin/python3 gst_record_server.py FOLDER

Listens at rtsp://127.0.0.1:PORT/line and prints the port. Ends when its standard input closes.
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - gi asks for the versions first


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    factory.set_launch(
        "( decodebin name=depay0 ! videoconvert ! jpegenc quality=95 ! "
        f"multifilesink async=false sync=false location={sys.argv[1]}/%06d.jpg )"
    )
    server.get_mount_points().add_factory("/line", factory)
    loop = GLib.MainLoop()
    server.attach(None)
    print(server.get_bound_port(), flush=True)  # noqa: T201 - how its starter learns the port

    def until_closed() -> None:
        sys.stdin.read()
        GLib.idle_add(loop.quit)

    threading.Thread(target=until_closed, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
