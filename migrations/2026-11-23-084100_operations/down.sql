-- Its rows answer whether something was done: without them a caller who asks again does it twice.
SET LOCAL lock_timeout = '200ms';
LOCK TABLE operations IN ACCESS EXCLUSIVE MODE;
DO $$
BEGIN
    IF EXISTS (SELECT FROM operations) THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'operations holds rows, and its way back would forget them',
            HINT = 'Once nobody can ask for them any more: DELETE FROM operations, then revert again.';
    END IF;
END $$;
DROP TABLE operations;
