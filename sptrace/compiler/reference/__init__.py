"""The method a second time, in eager PyTorch: what programs are verified against. Shares no code with the compiler."""
