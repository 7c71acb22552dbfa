"""NRI, the node resource interface (v1alpha1): plugins that watch pods and containers, and change them.

It knows of containers what the messages say; ``runtimed.cri.nri`` makes those, and does what comes of the answers.
"""
