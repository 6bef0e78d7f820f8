-- A constraint cannot be made unproved again; `harden_constrain` takes them away whole.
SELECT 1;
