"""Data sets, long-tailed splits, batches and random views.

source = sources.open_source("cifar10", data_dir=...)         # labels now, images on demand
split = longtail.make_split(source.train_labels, 10, rule="ltdd", imbalance_factor=100)
data = ArrayData(source.read("train", split.indices), split.labels)
views = crops.random_flip(key, augment.normalize(data.images[rows], spec.mean, spec.std))
"""
