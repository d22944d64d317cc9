"""The web page: who may look, what is sent to whom, and what the run says about itself. Sockets are uvicorn's."""
