"""Running plans on tensors: steps, runs, whole samplings, networks and graphs."""
