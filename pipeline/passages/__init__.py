"""Parts and crossings: passages of tracks through zones and over lines, with a verdict for each."""
