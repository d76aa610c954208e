-- Tables of the rows that are compared with hubspot_sync: each has a schema
-- with a copy of contacts, indexes included, and a note of what it pushed last.
-- What all of them have to come to is in the schema truth.
-- bench_digest() is equal for equal rows, whatever their order; it leaves out
-- the columns that say when we wrote them.

CREATE SCHEMA floor;
CREATE TABLE floor.contacts (LIKE contacts INCLUDING ALL);
CREATE TABLE floor.contact_owner_history (LIKE contact_owner_history INCLUDING ALL);
CREATE TABLE floor.sent (user_id integer PRIMARY KEY, contact_id text, properties jsonb);

CREATE SCHEMA truth;
CREATE TABLE truth.contacts (LIKE contacts INCLUDING ALL);
CREATE TABLE truth.contact_owner_history (LIKE contact_owner_history INCLUDING ALL);

CREATE SCHEMA diy;
CREATE TABLE diy.contacts (LIKE contacts INCLUDING ALL);
CREATE TABLE diy.sent (user_id integer PRIMARY KEY, properties jsonb);

CREATE FUNCTION bench_digest(contacts regclass) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    digest text;
BEGIN
    EXECUTE format('SELECT count(*) || '' rows, digest '' || coalesce(sum(hashtextextended(r::text, 0)::numeric), 0)
        FROM (SELECT connection_id, hubspot_contact_id, email, first_name, last_name, phone, owner_id, lifecycle_stage,
            status, created_at, properties, archived, archived_at, archived_reason, merged_into, hubspot_updated_at
            FROM %s) r', contacts) INTO digest;
    RETURN digest;
END $$;

CREATE FUNCTION bench_history_digest(history regclass) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    digest text;
BEGIN
    EXECUTE format('SELECT count(*) || '' rows, digest '' || coalesce(sum(hashtextextended(r::text, 0)::numeric), 0)
        FROM %s r', history) INTO digest;
    RETURN digest;
END $$;

-- Each contact's owners, from when till when, as one text.
CREATE FUNCTION bench_pasts(history regclass) RETURNS TABLE (id text, past text) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE format('SELECT hubspot_contact_id,
        string_agg(concat_ws('' '', owner_id, valid_from, valid_to), '', '' ORDER BY valid_from)
        FROM %s GROUP BY 1', history);
END $$;

-- Waits while a run of hubspot_sync is in one of these states. It looks every
-- 5 ms, and more seldom the longer that takes, 1 % of the time apart, not to
-- take the processor from what is measured; once a second it looks whether the
-- worker is still there. Each look is a transaction of its own: one that lasted
-- would keep the versions of the run's row, which is written with every page,
-- from being cleaned up.
CREATE PROCEDURE bench_await(run uuid, states text[]) LANGUAGE plpgsql AS $$
DECLARE
    start timestamptz := clock_timestamp();
    waited float8 := 0;
    was_there float8 := 0; -- so long after the start
BEGIN
    WHILE (SELECT status = ANY (states) FROM sync_runs WHERE id = run) LOOP
        COMMIT;
        waited := extract(epoch FROM clock_timestamp() - start);
        IF waited > was_there + 1 THEN
            EXIT WHEN EXISTS (SELECT FROM sync_logs WHERE id = run AND status <> ALL (states));
            was_there := waited;
        END IF;
        PERFORM pg_sleep(greatest(0.005, waited / 100));
    END LOOP;
END $$;
