"""Dark matter: convergence maps from shear, and the statistics of maps.

field -> posterior (wiener at its heart) -> inference -> map_mass
"""
