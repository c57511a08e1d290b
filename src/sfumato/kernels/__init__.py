"""Operations that torch has no kernel for, compiled on the user's machine when first needed; everything works without them, but slower."""
