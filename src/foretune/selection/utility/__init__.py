"""How much one row helps a model with another: the utility kernel of DELIFT, computed once and kept.

    from foretune.selection.utility.blocks import compute

    computed = compute(bench, rows, examples, folder, blocks=SerialBlocks())
    computed.view()            # (examples, rows) float32: how much example j helps row i, clipped at 0

``prompts``   from rows to tokens, cut where the example ends and the question begins
``scorer``    the forward pass: the example once, all questions packed behind it
``blocks``    all pairs, one example a block, kept on disk, resumed, spread over processes
``kernel``    what was computed, and its views
"""
