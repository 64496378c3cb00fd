// What the theme leaves out for people who use a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  // Headings of the navigation say that they are headings, and not of which level.
  for (const caption of document.querySelectorAll('.caption[role="heading"]'))
    caption.setAttribute("aria-level", "2");
  // There are two side columns: each gets a name.
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
  // The grey sheet behind an open column is for a mouse only. Escape and the button do the same.
  for (const sheet of document.querySelectorAll("label.overlay"))
    sheet.setAttribute("aria-hidden", "true");
  // What scrolls can be reached by the keyboard, too.
  for (const box of document.querySelectorAll("pre, .table-wrapper")) {
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", box.matches("pre") ? "Example" : "Table");
  }
});
