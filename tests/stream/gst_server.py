"""An RTSP camera for tests: run by the system's Python, which has GStreamer's bindings; prints its port.

    /usr/bin/python3 gst_server.py [--port N] [--user NAME --password WORD [--digest]] [--stall-after S] [--size WxH]

Serves moving test pictures in H.264 at rtsp://127.0.0.1:PORT/live. Ends when its standard input closes, or after
``--limit`` seconds. It listens on the loopback only.
"""

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - gi asks for the versions first


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    parser.add_argument("--digest", action="store_true", help="take no password in the clear")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--rate", type=int, default=25)
    parser.add_argument("--stall-after", type=float, help="seconds of pictures before it goes silent, connection kept")
    parser.add_argument("--limit", type=float, default=120.0)
    options = parser.parse_args()

    Gst.init(None)
    width, height = options.size.split("x")
    launch = (
        f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},"
        f"framerate={options.rate}/1,format=I420 ! "
        "valve name=gate drop=false ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 bitrate=800 ! "
        "h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )"
    )

    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch)
    factory.set_shared(True)
    if options.stall_after is not None:

        def configured(_factory: object, media: GstRtspServer.RTSPMedia) -> None:
            gate = media.get_element().get_by_name("gate")
            GLib.timeout_add(int(options.stall_after * 1000), lambda: gate.set_property("drop", True))

        factory.connect("media-configure", configured)
    if options.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        if options.digest:
            auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
            auth.add_digest(options.user, options.password, token)
        else:
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
        server.set_auth(auth)
        role = "viewer,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
        factory.add_role_from_structure(Gst.Structure.new_from_string(role))
    server.get_mount_points().add_factory("/live", factory)
    loop = GLib.MainLoop()
    server.attach(None)
    print(server.get_bound_port(), flush=True)  # noqa: T201 - how its starter learns the port

    def until_closed() -> None:
        sys.stdin.read()
        GLib.idle_add(loop.quit)  # even where the loop has not begun

    threading.Thread(target=until_closed, daemon=True).start()
    GLib.timeout_add(int(options.limit * 1000), loop.quit)
    loop.run()


if __name__ == "__main__":
    main()
