-- To find a user by e-mail.
CREATE INDEX CONCURRENTLY users_email_idx ON users (primary_email) WHERE NOT is_deleted;
