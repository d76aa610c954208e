# shellcheck shell=bash
# The work that bench/run measures, one function work_NAME each; to be sourced.

# --- pull, unchanged, incremental ---

# Calls a function for each size, number of properties, latency and limits.
for_each() {
    local action=$1 size count ms how
    shift
    for size in "${sizes[@]}"; do
        set_up "$size"
        for count in "$@"; do
            for ms in "${latencies[@]}"; do
                for how in "${limits[@]}"; do
                    conditions "$ms" "$how"
                    too_slow=()
                    "$action" "$size" "$count"
                done
            done
        done
    done
}

# All contacts into empty tables.
work_pull() {
    say "pull"
    for_each pull_all "${properties[@]}"
}

pull_all() {
    load_all "$2"
    take_turns "work=pull,contacts=$1,properties=$2" load
}

# All contacts once more; nothing has changed.
work_unchanged() {
    say "unchanged"
    for_each pull_again "${properties[@]}"
}

pull_again() {
    load_all "$2"
    take_turns "work=unchanged,contacts=$1,properties=$2" merge
}

# Rows take turns, so that a slow moment of the machine meets all of them.
take_turns() {
    local conditions=$1 kind=$2 row repetition
    for repetition in $(seq "$repeat"); do
        for row in "${rows[@]}"; do
            is_due "$row" || continue
            [ "$kind" != load ] || empty "$row"
            [ "$kind" = load ] || [ "$row" != hubspot_sync ] || versions="$(versions_of_rows)"
            pull "$conditions,repetition=$repetition" "$row" "$kind"
            compare "$row"
            [ "$kind" = load ] || [ "$row" != hubspot_sync ] || compare_versions
            compare_history "$row"
        done
    done
}

# Changes with every version of any row of hubspot_sync.
versions='' # before a pull that changes nothing
versions_of_rows() {
    sql -At -c "SELECT md5(string_agg(ctid || ' ' || xmin, ',' ORDER BY ctid)) FROM contacts"
}

compare_versions() {
    [ "$versions" = "$(versions_of_rows)" ] || die "rows that have not changed were written; the time means nothing"
}

# How much further HubSpot's clock goes before changes are made, so that those
# before lie further back than the overlap of incremental runs.
step_ms=400000
since='' # when the changes to be read began

# What has changed since, by search. With 300 properties a search does not fit
# into HubSpot's 3,000 characters, which is another story.
work_incremental() {
    say "incremental"
    for_each pull_changes 30
}

pull_changes() {
    local size=$1 count=$2 n repetition
    load_all "$count"
    load_told
    for n in "${changes[@]}"; do
        [ "$n" -le "$size" ] || continue
        too_slow=()
        for repetition in $(seq "$repeat"); do
            change "$n" "change $n.$repetition"
            read_changes "work=incremental,contacts=$size,properties=$count,changes=$n,repetition=$repetition"
        done
    done
}

# Gives n contacts another phone number, all at one instant of HubSpot's, and
# has the truth say so; sets `since`.
change() {
    local n=$1 phone=$2
    offset_ms=$((offset_ms + step_ms))
    set_simulator "\"clock_offset_ms\": $offset_ms"
    since="$(state now_ms)"
    [ "$n" = 0 ] ||
        control POST touch/contacts "{\"count\": $n, \"properties\": {\"phone\": \"$phone\"}}" >"$work/control.out"
    pull_unmeasured truth merge "$since"
    [ "$(sql -At -c "SELECT count(*) FROM truth.contacts WHERE phone = '$phone'")" = "$n" ] ||
        die "the $n changes are not found"
}

# Rows that are not measured any more have to keep up nevertheless.
read_changes() {
    local row
    for row in "${rows[@]}"; do
        if is_due "$row"; then
            pull "$1" "$row" merge "$since"
        else
            pull_unmeasured "$row" merge "$since"
        fi
        compare "$row"
        if [ "$row" = hubspot_sync ]; then
            compare_followed "$row"
        else
            compare_history "$row"
        fi
    done
}

# --- strategy ---

# A first full load under HubSpot's limits, with the time that it takes for an
# answer: hubspot_sync by list alone and by list and search, and the others.
work_strategy() {
    local size="${sizes[0]}" row strategy
    say "strategy"
    set_up "$size"
    load_all 30
    conditions 100 on
    too_slow=()
    for row in "${rows[@]}"; do
        if [ "$row" != hubspot_sync ]; then
            load_limited "$row" "$size"
            continue
        fi
        for strategy in list list_and_search; do
            sql -c "UPDATE sync_types SET full_strategy = '$strategy' WHERE sync_type = 'contacts'"
            load_limited "$strategy" "$size"
        done
    done
}

load_limited() {
    local row=$1 size=$2 repetition
    for repetition in $(seq "$repeat"); do
        [ -z "${too_slow[$row]:-}" ] || return 0
        empty "$row"
        pull "work=strategy,contacts=$size,properties=30,repetition=$repetition" "$row" load
        compare "$row"
        compare_history "$row"
    done
}

# --- push ---

# Students' progress to their contacts: all of them changed, one, none.
work_push() {
    local row ms how
    say "push"
    # 3 % of the contacts have no e-mail, so more are needed than students.
    set_up_school "$students" $((students * 21 / 20 + 20))
    for ms in "${latencies[@]}"; do
        for how in "${limits[@]}"; do
            conditions "$ms" "$how"
            for row in "${rows[@]}"; do
                push_row "$row"
            done
        done
    done
}

# A school of n students who are among so many contacts of HubSpot, all of them
# sent once. Further options go to the simulator.
set_up_school() {
    local n=$1 contacts=$2
    shift 2
    set_up "$contacts" --wide 0 "$@"
    ask_for 30
    unmeasured worker contacts full
    sql -v "students=$n" -f "$bench/school.sql"
    [ "$(sql -At -c 'SELECT count(*) FROM users')" = "$n" ] || die "the school has not got $n students"
    [ "$(sql -At -c 'SELECT count(*) FROM bench_progress b FULL JOIN preview_student_progress() p
        ON p.user_id = b.user_id::text WHERE b.properties IS DISTINCT FROM p.properties')" = 0 ] ||
        die "bench_progress and preview_student_progress() disagree about the students"
    unmeasured worker progress auto
    sql <<-'SQL'
	CREATE TABLE sent AS SELECT user_id, hubspot_contact_id AS contact_id, b.properties
	    FROM bench_progress b JOIN contacts c ON lower(c.email) = b.email;
	INSERT INTO floor.sent SELECT * FROM sent;
	INSERT INTO diy.sent SELECT user_id, properties FROM sent;
	SQL
    ! wants in_database || sql -c 'INSERT INTO in_database.sent SELECT * FROM sent'
    sql -c 'VACUUM ANALYZE'
}

# All of a row's pushes, beginning where everybody agrees on what was sent. After
# those of one kind HubSpot has to have what SQL says.
push_row() {
    local row=$1 n repetition
    wants "$row" || return 0
    too_slow=()
    unmeasured worker progress auto
    [ "$row" = hubspot_sync ] ||
        sql -c "UPDATE $row.sent s SET properties = b.properties FROM bench_progress b WHERE b.user_id = s.user_id" \
            -c "VACUUM ANALYZE $row.sent"
    sql -c 'VACUUM ANALYZE user_xp'
    for n in "$students" 1 0; do
        for repetition in $(seq "$repeat"); do
            is_due "$row" || continue
            sql -c "UPDATE user_xp SET total_xp = total_xp + 1 WHERE user_id <= $n"
            push "work=push,contacts=$students,changes=$n,repetition=$repetition" "$row" "$n"
        done
        unset "too_slow[$row]"
        compare_push "$row"
    done
}

push() {
    local conditions=$1 row=$2 changed=$3
    local -a command
    INTERVAL_MS="$(interval_for update)"
    export INTERVAL_MS
    case $row in
        floor) command=(client env 'PGOPTIONS=-c search_path=floor,public' "$work/floor" push) ;;
        diy) command=(client node "$work/diy/push.js") ;;
        in_database) command=(client "$bench/in-database" push) ;;
        *) command=(worker progress auto) ;;
    esac
    measure "$conditions,row=$row" "${command[@]}"
    compare_sent "$row" "$changed"
    note_slow "$row"
}

# A push has sent as many students as have changed: by its own count, and by the
# simulator's of the contacts that it was told to write.
compare_sent() {
    local row=$1 changed=$2 column found
    for column in records sent; do
        found="$(last_figure "$column")"
        [ "$found" = "$changed" ] ||
            die "$row has pushed $found students instead of $changed ($column); its time means nothing"
    done
}

# Every contact in HubSpot with what SQL says of its student.
compare_push() {
    local wrong
    load_hubspot 'objects/contacts?archived=false'
    wrong="$(sql -At -c "SELECT count(*) FROM users u LEFT JOIN bench_progress b ON b.user_id = u.id
        LEFT JOIN hubspot h ON lower(h.record #>> '{properties,email}') = b.email
        WHERE (h.record -> 'properties' @> b.properties) IS NOT TRUE")"
    [ "$wrong" = 0 ] ||
        die "after the push of $1 HubSpot has not got what SQL says of $wrong students; its time means nothing"
}

# --- several runs at once ---

# Companies and calls, so that there are four types of records beside owners. The
# contacts, which the push needs, lose their properties, so that their load has
# to bring them back.
set_up_types() {
    set_up_school $((few / 10)) "$few" --deals "$few" --companies "$few" --calls "$few" --owners 100
    sql <<-'SQL'
	CREATE TABLE companies (id text PRIMARY KEY, name text, properties jsonb);
	CREATE TABLE calls (id text PRIMARY KEY, hs_call_title text, properties jsonb);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, modified_property,
	    delete_policy)
	    VALUES ('companies', 'companies', 'public', 'companies', '{id}', 'hs_lastmodifieddate', 'ignore'),
	        ('calls', 'calls', 'public', 'calls', '{id}', 'hs_lastmodifieddate', 'ignore');
	INSERT INTO sync_fields (sync_type, column_name, property)
	    VALUES ('companies', 'name', 'name'), ('calls', 'hs_call_title', 'hs_call_title');
	UPDATE contacts SET properties = NULL;
	VACUUM ANALYZE contacts;
	SQL
    conditions 100 on
}

together() {
    "$python" "$bench/together.py" "$csv" "contacts=$few,latency_ms=$latency,limits=$limit,row=hubspot_sync" "$@" ||
        die "no figures of $*"
}

# How much of the account's limit several types use together, and whether
# HubSpot has to refuse anything.
work_saturation() {
    say "saturation"
    set_up_types
    together saturation
    compare_types contacts deals companies calls owners
}

# Whether each of these types has arrived.
compare_types() {
    local type
    for type in "$@"; do
        case $type in
            contacts) compare_loaded contacts contacts hubspot_contact_id ;;
            deals) compare_loaded deals deals hubspot_deal_id ;;
            owners) compare_loaded owners staff id ;;
            *) compare_loaded "$type" "$type" id ;;
        esac
    done
}

# Whether a push and somebody's small run get their share beside long loads.
work_fairness() {
    say "fairness"
    set_up_types
    together fairness
    compare_types contacts deals companies owners
    compare_push hubspot_sync
}

# --- memory ---

# What a worker needs, from few records to many.
work_memory() {
    local n
    say "memory"
    for n in "${memory_sizes[@]}"; do
        set_up "$n"
        ask_for 30
        pull_unmeasured truth load
        check_truth
        pull "work=memory,contacts=$n,properties=30,repetition=1" hubspot_sync load
        compare hubspot_sync
        compare_history hubspot_sync
    done
}

# --- the proof ---

# Each target has to be missed by figures that miss it. Each comparison has to
# pass, and then to notice what is spoiled: it must end with its message and not
# with figures.
prove_everything() {
    local status=0 type
    "$python" "$bench/prove_report.py" || status=1
    set_up 300
    load_all 30
    load_told
    prove restore_rows spoiled_rows || status=1
    prove_runs || status=1
    few=50
    set_up_types
    for type in contacts deals companies calls owners; do
        unmeasured worker "$type" full
    done
    prove : spoiled_types || status=1
    prove_sent || status=1
    return "$status"
}

# A run whose log claims less time than it took is no measurement, nor is one that
# goes on writing after its end. Here somebody else writes, and a trigger changes
# the log.
prove_runs() {
    local run='unmeasured worker contacts full' status=0
    conditions 500 off
    notices yes "$run" nothing SELECT || status=1
    write_on &
    notices no "$run" 'writing after the end' SELECT || status=1
    wait $!
    notices no "$run" 'a log that claims less' "
        CREATE FUNCTION claim() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.created_at := NEW.completed_at; RETURN NEW; END';
        CREATE TRIGGER claim BEFORE UPDATE ON sync_runs FOR EACH ROW
            WHEN (NEW.completed_at IS NOT NULL) EXECUTE FUNCTION claim()" || status=1
    return "$status"
}

# Writes 400 kB of WAL a second for 10 seconds.
write_on() {
    sql <<-'SQL'
	DO $$ BEGIN
	    FOR i IN 1 .. 200 LOOP
	        PERFORM pg_logical_emit_message(false, 'bench', repeat('x', 20000)), pg_sleep(0.05);
	    END LOOP;
	END $$;
	SQL
}

# Either count of a push may be wrong.
prove_sent() {
    local csv="$work/sent.csv" status=0 counts passes=yes
    for counts in 3,3 2,3 3,2; do
        printf 'records,sent\n%s\n' "$counts" >"$csv"
        notices "$passes" 'compare_sent hubspot_sync 3' "counts of $counts" SELECT || status=1
        passes=no
    done
    return "$status"
}

# A comparison and what is spoiled, and below how. The truth comes last: rows are
# restored from it.
spoiled_rows() {
    cat <<-'TABLE'
	compare hubspot_sync: a value
	    UPDATE contacts SET phone = 'other' WHERE ctid = (SELECT min(ctid) FROM contacts)
	compare hubspot_sync: a property
	    UPDATE contacts SET properties = properties || '{"city": "other"}' WHERE ctid = (SELECT min(ctid) FROM contacts)
	compare hubspot_sync: a missing row
	    DELETE FROM contacts WHERE ctid = (SELECT min(ctid) FROM contacts)
	compare hubspot_sync: a row too many
	    INSERT INTO contacts (hubspot_contact_id) VALUES ('1')
	compare_versions: a row written again
	    UPDATE contacts SET phone = phone WHERE ctid = (SELECT min(ctid) FROM contacts)
	compare_history hubspot_sync: a history
	    UPDATE contact_owner_history SET valid_from = now() WHERE ctid = (SELECT min(ctid) FROM contact_owner_history)
	compare_followed hubspot_sync: a history
	    UPDATE contact_owner_history SET valid_from = now() WHERE ctid = (SELECT min(ctid) FROM contact_owner_history)
	compare_followed hubspot_sync: a missing history
	    DELETE FROM contact_owner_history WHERE ctid = (SELECT min(ctid) FROM contact_owner_history)
	check_truth: a truth that is none
	    UPDATE truth.contacts SET email = 'other' WHERE ctid = (SELECT min(ctid) FROM truth.contacts)
	TABLE
}

# Nothing restores these, so each comparison is made once.
spoiled_types() {
    cat <<-'TABLE'
	compare_types contacts: a property
	    UPDATE contacts SET properties = properties || '{"city": "other"}' WHERE ctid = (SELECT min(ctid) FROM contacts)
	compare_types deals: a missing row
	    DELETE FROM deals WHERE ctid = (SELECT min(ctid) FROM deals)
	compare_types companies: a row too many
	    INSERT INTO companies (id) VALUES ('1')
	compare_types calls: no properties
	    UPDATE calls SET properties = NULL WHERE ctid = (SELECT min(ctid) FROM calls)
	compare_types owners: an archived row
	    UPDATE staff SET archived = true WHERE id = (SELECT min(id) FROM staff WHERE NOT archived)
	compare_push hubspot_sync: a student
	    UPDATE user_xp SET total_xp = total_xp + 1 WHERE user_id = 1
	TABLE
}

# Goes through such a table, restoring everything before each line.
prove() {
    local restore=$1 table=$2 check what statement status=0 proved=''
    while IFS=: read -r -u 3 check what && read -r -u 3 statement; do
        "$restore"
        [ "$check" = "$proved" ] || notices yes "$check" nothing SELECT || status=1
        proved=$check
        notices no "$check" "${what# }" "$statement" || status=1
    done 3< <("$table")
    return "$status"
}

restore_rows() {
    sql -c 'TRUNCATE contacts, contact_owner_history' -c 'INSERT INTO contacts SELECT * FROM truth.contacts' \
        -c 'INSERT INTO contact_owner_history SELECT * FROM truth.contact_owner_history'
    versions="$(versions_of_rows)"
}

# Whether a comparison passes, or not, once something was done.
notices() {
    local passes=$1 what=$3 statement=$4 result=no
    local -a check
    read -ra check <<<"$2"
    sql -c "$statement" >"$work/proof"
    ("${check[@]}") >"$work/proof" 2>&1 && result=yes
    if [ "$result" = "$passes" ] && { [ "$passes" = yes ] || grep -qE 'means? nothing' "$work/proof"; }; then
        printf 'ok %s: %s\n' "${check[*]}" "$what"
    else
        cat "$work/proof"
        printf 'not ok %s: %s\n' "${check[*]}" "$what"
        return 1
    fi
}
