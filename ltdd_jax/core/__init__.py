"""What everything else stands on: types, configs, names, keys, devices, files, progress."""
