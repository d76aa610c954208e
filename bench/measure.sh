# shellcheck shell=bash
# Setting up, measuring and comparing for bench/run; to be sourced.
#
# A row's contacts stand in a schema of its name, hubspot_sync's in public, and
# what all of them have to be in the schema truth.

# A fresh server and a fresh simulator with so many contacts, and what else the
# options say. The server's settings are those of a small machine; it does not
# wait for its disk, which is not what is measured. All rows do without jit,
# which hubspot_sync switches off for itself, and without parallel workers,
# whose CPU time nobody would count.
set_up() {
    local contacts=$1
    shift
    take_down
    say "setting up with $contacts contacts"
    simulator_start --contacts "$contacts" --deals 0 --companies 0 --wide 300 --token "$HUBSPOT_TOKEN" \
        --page-cache-mb 4096 "$@"
    export SIMULATOR_URL="$simulator_url" SIMULATOR_PID="$simulator_pid" HUBSPOT_URL="$simulator_url"
    (umask 077 && printf '%s\n' "$HUBSPOT_TOKEN" >"$work/token")
    give "$work/token"
    server_start <<-CONF
	hubspot_sync.api_url = '$simulator_url'
	hubspot_sync.access_token_file = '$work/token'
	# An hour passes quickly here: without this a later repetition would read
	# the changes of earlier ones again.
	hubspot_sync.deep_overlap = 300
	shared_buffers = 1GB
	max_wal_size = 16GB
	checkpoint_timeout = 1h
	autovacuum = off
	jit = off
	max_parallel_workers_per_gather = 0
	max_worker_processes = 16
	CONF
    sql -c 'CREATE EXTENSION hubspot_sync' -f "$bench/tables.sql"
    ! wants in_database || sql -f "$bench/in-database.sql"
    loaded=''
    offset_ms=0
    conditions 0 off
}

take_down() {
    server_stop
    simulator_stop || true
    rm -rf "$work/data"
}

# Latency and limits from now on; sets both variables. Where nobody enforces
# limits, hubspot_sync is told so: it would keep to them.
latency=0
limit=off
conditions() {
    latency=$1
    limit=$2
    set_simulator "\"latency_ms\": $latency, \"limits\": $([ "$limit" = on ] && echo true || echo false)"
    local known=1000000
    [ "$limit" = off ] || known=DEFAULT
    sql -c "LOAD 'hubspot_sync'" \
        -c "ALTER SYSTEM SET hubspot_sync.burst_limit = $known" \
        -c "ALTER SYSTEM SET hubspot_sync.search_limit = $known" \
        -c 'SELECT pg_reload_conf()' >"$work/reload.out"
}

set_simulator() {
    control POST config "{\"journal_bodies\": false, $1}" >"$work/control.out"
}

# A member of the simulator's state: "now_ms" or "objects contacts live".
state() {
    control GET state '' | "$python" -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1:]:
    value = value[name]
print(value)' "$@"
}

# --- measuring ---

last_seconds=0 # of the last measurement

# Adds a line to the CSV file: conditions, kind, and what bench/watch.py takes.
# Sets `last_seconds`.
measure() {
    local conditions="$1,latency_ms=$latency,limits=$limit"
    shift
    last_seconds="$("$python" "$bench/watch.py" "$csv" "$conditions" "$@")" || die "no figures of $*"
    printf '  %s: %s s\n' "${conditions//,/, }" "$last_seconds"
}

# A figure of the last line of the CSV file, by the name of its column.
last_figure() {
    "$python" -c 'import csv, sys; print(list(csv.DictReader(open(sys.argv[1])))[-1][sys.argv[2]])' "$csv" "$1"
}

unmeasured() {
    "$python" "$bench/watch.py" /dev/null work=none "$@" >"$work/unmeasured.out" || die "no end of $*"
}

# Rows that have shown to be too slow to be repeated.
declare -A too_slow=()

is_due() {
    wants "$1" && [ -z "${too_slow[$1]:-}" ]
}

note_slow() {
    [ "${last_seconds%.*}" -lt "$slow" ] || too_slow[$1]=yes
}

# The time between two requests that keeps a client below a limit: 190 in 10 s,
# or for searches 5 a second.
interval_for() {
    if [ "$limit" = off ]; then
        echo 0
    elif [ "$1" = search ]; then
        echo 205
    else
        echo 53
    fi
}

# --- contacts ---

names='' # of the properties asked for

# Asks for 30 or 300 properties from now on, of which 9 are always asked for;
# sets `names`.
ask_for() {
    local first=email,firstname,lastname,phone,hubspot_owner_id,lifecyclestage,hs_lead_status,createdate
    local more=address,annualrevenue,city,company,country,date_of_birth,hs_analytics_source,hs_email_optout,hs_language
    more+=,hs_timezone,industry,jobtitle,message,mobilephone,notes_last_contacted,num_associated_deals,num_notes
    more+=,numemployees,state,website,zip
    [ "$1" = 30 ] || more="$(printf ',extra_%03d' $(seq 291) | cut -c 2-)"
    names="$first,hs_merged_object_ids,$more"
    sql -c "UPDATE sync_types SET properties = string_to_array('$names', ',') WHERE sync_type = 'contacts'"
}

# Sets the caller's array `command` to what runs a row's pull: its kind (load
# into empty tables, or merge), and for changes since when. A search may be made
# less often than a list be read.
set_command() {
    local row=$1 kind=$2 since=${3:-}
    INTERVAL_MS="$(interval_for "${since:+search}")"
    export INTERVAL_MS
    case $row in
        truth | floor)
            command=(client env "PGOPTIONS=-c search_path=$row,public" "$work/floor" "$kind" "$names")
            command+=(${since:+"$since"})
            ;;
        diy) command=(client node "$work/diy/pull.js" "$names" ${since:+"$since"}) ;;
        in_database) command=(client "$bench/in-database" pull "$names" ${since:+"$since"}) ;;
        *) command=(worker contacts "$([ -n "$since" ] && echo incremental || echo full)") ;;
    esac
}

pull() {
    local conditions=$1
    local -a command
    shift
    set_command "$@"
    measure "$conditions,row=$1" "${command[@]}"
    note_slow "$1"
}

pull_unmeasured() {
    local -a command
    set_command "$@"
    unmeasured "${command[@]}"
}

schema_of() {
    case $1 in
        truth | floor | diy | in_database) echo "$1" ;;
        *) echo public ;;
    esac
}

# Whether a row writes down who owned a contact when.
keeps_history() {
    [ "$1" != diy ] && [ "$1" != in_database ]
}

empty() {
    local schema
    schema="$(schema_of "$1")"
    ! keeps_history "$1" || sql -c "TRUNCATE $schema.contact_owner_history"
    [ "$schema" != public ] || sql -c 'TRUNCATE sync_state, sync_owner_reads, sync_runs, sync_absences'
    sql -c "TRUNCATE $schema.contacts"
}

# A time is believed only if the row came to the same contacts as the truth, and
# those are as many as the simulator's.
compare() {
    local schema found expected
    schema="$(schema_of "$1")"
    found="$(sql -At -c "SELECT bench_digest('$schema.contacts')")"
    expected="$(sql -At -c "SELECT bench_digest('truth.contacts')")"
    [ "$found" = "$expected" ] ||
        die "contacts of $1 differ: $found instead of $expected; its time means nothing"
    [[ $found == "$(state objects contacts live) rows,"* ]] ||
        die "contacts of $1 are not as many as HubSpot's: $found; its time means nothing"
}

# The simulator's own records in the table hubspot: what its control API says,
# one a line.
load_hubspot() {
    control GET "$1" >"$work/records.jsonl"
    sql -c 'DROP TABLE IF EXISTS hubspot' -c 'CREATE UNLOGGED TABLE hubspot (record jsonb)' \
        -c "\\copy hubspot FROM '$work/records.jsonl' (FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\x02')" \
        2>"$work/notices"
    rm -f "$work/records.jsonl"
}

# The truth is what floor's program has fetched; where there are few enough of
# them, it has to be the simulator's own records.
max_checked=5000
check_truth() {
    local wrong
    [ "$(state objects contacts live)" -le "$max_checked" ] || return 0
    load_hubspot 'objects/contacts?archived=false'
    wrong="$(sql -At -v "names=$names" <<-'SQL'
	SELECT count(*) FROM truth.contacts t
	FULL JOIN (SELECT record ->> 'id' AS id, record, record -> 'properties' AS p FROM hubspot) h
	    ON h.id = t.hubspot_contact_id
	WHERE t.hubspot_contact_id IS NULL OR h.id IS NULL
	    OR (t.email, t.first_name, t.last_name, t.phone, t.owner_id) IS DISTINCT FROM
	        (p ->> 'email', p ->> 'firstname', p ->> 'lastname', p ->> 'phone', p ->> 'hubspot_owner_id')
	    OR t.hubspot_updated_at IS DISTINCT FROM (record ->> 'updatedAt')::timestamptz
	    OR EXISTS (SELECT FROM unnest(string_to_array(:'names', ',')) n
	        WHERE t.properties -> n IS DISTINCT FROM coalesce(p -> n, 'null'))
	SQL
    )"
    [ "$wrong" = 0 ] || die "$wrong contacts of the truth are not the simulator's; a comparison with it means nothing"
}

# Who owned a contact when, for rows that write it down.
compare_history() {
    keeps_history "$1" || return 0
    [ "$(sql -At -c "SELECT bench_history_digest('$(schema_of "$1").contact_owner_history')")" = \
        "$(sql -At -c "SELECT bench_history_digest('truth.contact_owner_history')")" ] ||
        die "the history of owners of $1 differs; its time means nothing"
}

# Of some contacts that have changed hubspot_sync asks for the history that
# HubSpot has itself. So each contact's has to be the truth's or HubSpot's.
compare_followed() {
    local wrong
    wrong="$(sql -At -c "SELECT count(*) FROM bench_pasts('contact_owner_history') f
        FULL JOIN bench_pasts('truth.contact_owner_history') t USING (id) FULL JOIN bench_pasts('told') h USING (id)
        WHERE f.past IS DISTINCT FROM t.past AND f.past IS DISTINCT FROM h.past")"
    [ "$wrong" = 0 ] || die "the history of owners of $wrong contacts differs; the time of $1 means nothing"
}

# HubSpot's own history of owners in the table told.
load_told() {
    load_hubspot history/contacts/hubspot_owner_id
    sql 2>"$work/notices" <<-'SQL'
	DROP TABLE IF EXISTS told;
	CREATE UNLOGGED TABLE told AS SELECT * FROM (
	    SELECT record ->> 'id' AS hubspot_contact_id, value ->> 'value' AS owner_id, at AS valid_from,
	        lead(at) OVER (PARTITION BY record ->> 'id' ORDER BY at) AS valid_to
	    FROM hubspot, jsonb_array_elements(record -> 'history') AS value,
	        to_timestamp((value ->> 'timestamp')::float8 / 1000) AS at) v
	WHERE owner_id <> '';
	SQL
}

# Whether a table has HubSpot's live records of a type, with the properties
# asked for; of owners the record itself is compared.
compare_loaded() {
    local type=$1 table=$2 key=$3 wrong
    load_hubspot "objects/$type?archived=false"
    wrong="$(sql -At -v "type=$type" -v "table=$table" -v "key=$key" <<-'SQL'
	WITH asked AS (
	    SELECT property AS name FROM sync_fields WHERE sync_type = :'type' AND property IS NOT NULL
	    UNION SELECT unnest(properties) FROM sync_types WHERE sync_type = :'type'
	), loaded AS (
	    SELECT to_jsonb(t) ->> :'key' AS id, t.properties FROM :"table" t
	    WHERE (to_jsonb(t) ->> 'archived') IS DISTINCT FROM 'true'
	)
	SELECT count(*) FROM loaded l
	FULL JOIN (SELECT record ->> 'id' AS id, coalesce(record -> 'properties', record) AS p FROM hubspot) h USING (id)
	WHERE l.id IS NULL OR h.id IS NULL
	    OR EXISTS (SELECT FROM asked WHERE l.properties -> name IS DISTINCT FROM coalesce(h.p -> name, 'null'))
	SQL
    )"
    [ "$wrong" = 0 ] || die "$wrong $type are not the simulator's; the figures of their load mean nothing"
}

# Has all rows hold all contacts with so many properties, unless they do; sets
# `loaded`. It also makes the simulator's pages ready, so that no row meets it
# making them.
loaded=''
load_all() {
    local ms=$latency how=$limit row
    [ "$loaded" != "$1" ] || return 0
    conditions 0 off
    ask_for "$1"
    for row in truth "${rows[@]}"; do
        empty "$row"
        pull_unmeasured "$row" load
        [ "$row" != truth ] || check_truth
        compare "$row"
        compare_history "$row"
    done
    sql -c 'VACUUM ANALYZE'
    loaded=$1
    conditions "$ms" "$how"
}
