"""Algorithms that order rows: facility location and its relatives, graph cut, log-determinant, k-centre, herding.

They take numbers (a kernel or embeddings) and know nothing of texts or models. A kernel comes first:

    from foretune.selection.greedy import facility_location, kernel

    similar = kernel.dense(s)                      # s[row, candidate]; or kernel.sparse(csc), kernel.columns(s.T)
    ranking = facility_location.rank(facility_location.fl(similar), count)
    ranking.indices, ranking.gains, ranking.n_positive, ranking.objective

`facility_location.rank_by_cost` spends a budget of answer tokens, `partition` is for pools beyond some 10⁵ rows,
`graph_cut`, `log_determinant`, `farthest_first` and `kernel_herding` hold one function each.
"""
