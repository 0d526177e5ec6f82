"""Many runs: the points of a sweep, a search by Optuna, one warm process for all of them."""
