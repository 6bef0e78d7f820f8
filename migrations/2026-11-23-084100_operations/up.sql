-- Exactly once through anything: the id is written in the same transaction as the work, so whoever has to ask whether that
-- transaction committed finds its answer here.
CREATE TABLE operations (
    operation_id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX operations_created_at_idx ON operations (created_at);
COMMENT ON TABLE operations IS 'Operations that were committed, by the id that their caller gave them.';
COMMENT ON COLUMN operations.operation_id IS 'Chosen by the caller before the first try, and the same at every further one.';
COMMENT ON COLUMN operations.created_at IS 'When it was done; old rows may be deleted.';
