'use strict'

// Students' progress from the view bench_progress to their contacts: one PATCH a
// contact for those who differ from what was sent last, which diy.sent knows.

const { start } = require('./common')

const AT_ONCE = 6
const NOTE_EVERY = 100

async function send(hubspot, students) {
  const left = students.values()
  const worker = async () => {
    for (const student of left) {
      await hubspot.crm.contacts.basicApi.update(student.email, { properties: student.properties }, 'email')
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
}

async function note(db, students) {
  await db.query({
    name: 'note',
    text: `
      UPDATE diy.sent s SET properties = r.properties
      FROM jsonb_to_recordset($1::jsonb) AS r(user_id integer, properties jsonb) WHERE s.user_id = r.user_id`,
    values: [JSON.stringify(students)]
  })
}

async function push(hubspot, db) {
  const { rows } = await db.query(`
    SELECT p.user_id, p.email, p.properties FROM bench_progress p JOIN diy.sent s USING (user_id)
    WHERE s.properties IS DISTINCT FROM p.properties`)
  for (let from = 0; from < rows.length; from += NOTE_EVERY) {
    const students = rows.slice(from, from + NOTE_EVERY)
    await send(hubspot, students)
    await note(db, students)
  }
  return rows.length
}

start(push)
