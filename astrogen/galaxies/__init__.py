"""Galaxies: where the prior meets an observation, and what is believed afterwards.

observations -> frames -> plans -> posterior (compressed data) -> inference -> result

`deconvolve` is the road of single galaxies in single exposures, in batches; `deblend` that of
scenes of several exposures, bands and galaxies (scene, bands, mode, blend, draws).
"""
