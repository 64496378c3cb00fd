"""Operations of a store that several processes share: who owns each, and what others see of it."""
