"""The library that the scripts in create_data, train and eval call."""
