"""How it looks: what happens to the pixels of a clip between the decoder and the network."""
