"""What fine-tuning did to a model beside its task: probes that look at likelihoods and weights, and change neither."""
