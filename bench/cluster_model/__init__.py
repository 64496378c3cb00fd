"""A seeded model of a cluster: what it does under a load that no test machine can make.

``python -m bench.cluster_model simulate`` runs the model, ``check`` compares its small end with
a real cluster. See :mod:`.model` for what is real in it, and :mod:`.figures` for its figures and
their sources. The findings are in docs/explanation/scale.md.
"""
