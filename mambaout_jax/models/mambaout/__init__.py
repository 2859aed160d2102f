"""MambaOut, and MambaOut with the state space model put back."""
