"""Audio and music: files, streams, tracks with stems, synthetic songs, crops to train on."""
