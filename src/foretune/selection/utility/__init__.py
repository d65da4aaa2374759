"""How much one row helps a model with another: the utility kernel of DELIFT, computed once and kept.

    from foretune.selection.utility import kernel

    computed = kernel.compute(bench, rows, columns, folder, blocks=InTurn())
    computed.view()            # (columns, rows) float32: s of column j for row i, clipped at 0

``prompts``   from rows to tokens, cut where the example ends and the question begins
``scorer``    the forward pass: the example once, all questions packed behind it
``kernel``    distances of all pairs, block by block, kept on disk; views of them; what it will cost
"""
