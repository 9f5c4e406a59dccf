"""From structures to packed, checked molecules with named targets."""
