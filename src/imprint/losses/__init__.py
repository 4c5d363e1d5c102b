"""Floor 2: objectives as pure functions of tensors. What would be state is an argument."""
