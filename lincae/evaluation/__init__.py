"""Evaluation: protocols, probes, tables, figures and the linearity report."""
