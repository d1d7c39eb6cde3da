"""The stages of a run, each a function from files to files; :mod:`quant_engine.pipeline` puts them in order."""
