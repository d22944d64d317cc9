"""Help texts of metrics that several sinks share."""

from typing import Final

VIEWERS: Final = "Connected viewers."
ENCODED: Final = "Images compressed for viewers, each once for all of them."
