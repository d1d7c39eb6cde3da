"""The experiment of arXiv 2606.09927 as a stage."""
