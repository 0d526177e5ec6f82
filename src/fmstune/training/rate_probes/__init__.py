"""Short runs that choose the learning rate of a job with `training.learning_rate=auto`."""
