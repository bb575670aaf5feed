"""What astrogen's priors learn from: galaxies simulated or taken from real catalogues, written as
checked, sharded TFRecords.

    python -m data_pipelines galaxies --num 40000 --seed 1 --out DIR
    python -m data_pipelines real --catalog DIR/real_galaxy_catalog.fits --out DIR

population.py draws, real.py reads catalogues, workers.py spreads either over processes, records.py
writes (astrogen/training/records.py reads).
"""
